"""The operator's pages: what is happening on my data, who approved it, what did it cost, and can I stop it."""
