"""What the user sees of jobs from the client: progress, and why a job is slow."""
