"""The information term: heads, critics and their losses."""
