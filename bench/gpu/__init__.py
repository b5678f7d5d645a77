"""One call on a GPU machine: correctness, times, floors."""
