"""Images that do not fit into the memory: predicted, decided and written band by band."""
