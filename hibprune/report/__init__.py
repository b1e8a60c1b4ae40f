"""From records to what people read: report, model card, pictures and the closing table."""
