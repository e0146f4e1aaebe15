"""States of recurrent layers: how rows change them, in which order, and their memory."""
