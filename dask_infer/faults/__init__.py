"""Which failure is whose: the rows', the model's, the memory's or the clock's."""
