"""The nouns every other package meets in: files, recipe, records, artifact, target, measurement, budget, verdict."""
