"""The command `benchmark` of tf_isvae, from a clone: tf_isvae/commands/benchmark.py."""

import tf_isvae_command

if __name__ == "__main__":
    tf_isvae_command.run("benchmark")
