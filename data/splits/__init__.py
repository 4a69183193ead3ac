"""Which study is trained, validated and tested on: assigned, written, read back."""
