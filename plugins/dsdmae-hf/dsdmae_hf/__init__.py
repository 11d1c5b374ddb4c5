"""`hf:NAME` for dsdmae."""
