"""Pages for people: one evaluation, or several runs side by side, each as one HTML file that needs no network."""
