"""The command `compare_outliers` of tf_isvae, from a clone: tf_isvae/commands/compare_outliers.py."""

import tf_isvae_command

if __name__ == "__main__":
    tf_isvae_command.run("compare_outliers")
