"""The command `choose_size` of tf_isvae, from a clone: tf_isvae/commands/choose_size.py."""

import tf_isvae_command

if __name__ == "__main__":
    tf_isvae_command.run("choose_size")
