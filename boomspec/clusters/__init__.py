"""Compiled graphs as jobs of KubeRay and Slurm."""
