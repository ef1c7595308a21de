"""The output `unfamiliarity`: how little a face looks like those that the network was trained on."""
