"""Whether a teacher's family can be built right, asked of transformers with tiny random models (`trial`)."""
