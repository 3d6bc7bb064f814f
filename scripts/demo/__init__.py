"""The demo model: trained, evaluated, shown."""
