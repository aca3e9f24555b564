"""Amazon S3 and compatible services: objects, keys from a Secret, authorities, and the service's clock and errors."""
