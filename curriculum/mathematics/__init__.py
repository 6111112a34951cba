"""Mathematics lessons whose numbers code has computed."""
