"""Phase 1: prompts to teacher records."""
