"""A Flower application: hospitals train one model on their records of heart disease, which stay with them."""
