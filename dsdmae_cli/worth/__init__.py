"""`dsdmae worth`: does pre-training on one's own images pay?

tasks.py     what is judged, how, with how many labels: the commands that a person would type, one for each
running.py   them at work beside each other, within a budget of time
findings.py  what they came to, by network, number of labels and way of judging; what pre-training gained
words.py     the answer in a sentence
page.py      report.html, report.md and the figure
"""
