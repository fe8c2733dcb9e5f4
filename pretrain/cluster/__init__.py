"""Many machines: which ranks there are, and jobs for SLURM, torchrun, submitit, Kubernetes and SkyPilot."""
