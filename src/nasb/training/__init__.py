"""Configs, the loop, the stages, the pipeline, checkpoints and the run directory."""
