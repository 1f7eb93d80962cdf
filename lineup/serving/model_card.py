def example(info):
    return "print()\n"


def model_card(info, scores, speed, size, int8):
    return "card\n"
