"""Find the first layer of a graph whose output is not what another run of the same graph gives, with Polygraphy."""
