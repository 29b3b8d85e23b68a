"""The command `search` of tf_isvae, from a clone: tf_isvae/commands/search.py."""

import tf_isvae_command

if __name__ == "__main__":
    tf_isvae_command.run("search")
