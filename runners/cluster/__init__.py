"""Ray clusters: starting or joining one, access, what each machine reaches, jobs of the job server."""
