"""Contenders on subjects: jobs, runs, records, and what they say."""
