"""LIMPQ: learned step sizes as layer importance (Tang et al., ECCV 2022)."""
