// An action of the simulation's own that has all three stages: it says where it runs, and ends as it is asked to.
//@ print stage post in ${PWD} of ${GITHUB_WORKSPACE}, home ${HOME}
//@ append ${GITHUB_STATE} stage_post=done
//@ print seen before: ${STATE_stage_pre} ${STATE_stage_main}
//@ exit ${INPUT_EXIT-POST}
