"""The format of snapshots: generations of sealed manifests and files of checksummed pages."""
