"""What the OSTree generation says and stores: push frames, tar streams, objects, the summary. No I/O."""
