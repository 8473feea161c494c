"""Pictures: `decoding` reads one, `preprocessing` makes it a network's input, `discovery` finds them on disk."""
