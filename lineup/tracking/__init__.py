"""The only room that knows MLflow: what the files say is recorded there.

Points and files of a training go through these modules, in this order:

    run_recorder    the training's side: events → the run folder, and a follower beside it
    search_recorder the same for a search, whose trials are runs below its own
    run_log         the run folder .lineup/runs/<run id>/: files, the truth
    mirror          makes a run in MLflow equal to its folder; used by follower_process while a
                    training runs, and by sync after evaluate, after export and by `make sync`
    registry        a version of what evaluate verified
    promotion       the gate before @champion

names, location, reachability, sqlite_tables and run_log import no MLflow, which takes seconds.
"""
