"""Starting workers (`hvdkit run`) and finding out why they would not start (`hvdkit doctor`)."""
