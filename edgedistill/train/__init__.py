"""Phase 2: records to student."""
