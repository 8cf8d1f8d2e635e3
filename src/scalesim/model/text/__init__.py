"""Text of prompts and replies: tokenizers, chat templates, streams of text."""
