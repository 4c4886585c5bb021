"""Any table, or the whole paper, in one command: which notebooks to execute, on which runs, and how far that is."""

from augfpn.reproduction.jobs import Job, Request, check_runs, jobs_of

__all__ = ["Job", "Request", "check_runs", "jobs_of"]
