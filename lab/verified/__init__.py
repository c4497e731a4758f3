"""What verified memory keeps and costs, beside fixed rates and cuts of the text."""
