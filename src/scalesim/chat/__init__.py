"""Chats: from messages, tools and a format to a request; from its text to an answer."""
