"""What the toolkit reads, by where it comes from: for each kind of file a function that makes its `Case`."""
