"""The command `gpu_check` of tf_isvae, from a clone: tf_isvae/commands/gpu_check.py."""

import tf_isvae_command

if __name__ == "__main__":
    tf_isvae_command.run("gpu_check")
