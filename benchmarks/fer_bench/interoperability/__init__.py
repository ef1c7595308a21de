"""Which programs read a model file, and do they compute what its certificate says?"""
