"""The contract: messages, subjects, streams and the codec. Pure data, and nothing else.

Everything that crosses a process boundary is declared here. A message is frozen; a changed meaning is a new message.
"""
