"""Engines behind one small Protocol: token ids in, token ids or logits out."""
