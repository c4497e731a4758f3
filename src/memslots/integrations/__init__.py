"""Memories in the interfaces of LangChain (`.langchain`) and LlamaIndex (`.llama_index`)."""
