"""What is known of a model without loading it: headers, config, families, the Hugging Face hub."""
