"""The engine over HTTP, in the words of OpenAI's clients."""
