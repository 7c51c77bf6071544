"""The commands of `unimodal-ar`, one file each: `add` declares its arguments, `run` does it."""
