"""nasb."""
