"""`--engine ray`: a job cut into shards over the machines of a Ray cluster."""
