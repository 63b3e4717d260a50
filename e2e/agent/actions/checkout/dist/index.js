// Stands in for actions/checkout: the simulated node does what the lines with an @ say.
//@ print Syncing repository: ${GITHUB_REPOSITORY}
//@ write ${GITHUB_WORKSPACE}/README.md ${GITHUB_REPOSITORY} at ${GITHUB_SHA}
//@ append ${GITHUB_STATE} isPost=true
//@ append ${GITHUB_OUTPUT} commit=${GITHUB_SHA}
//@ append ${GITHUB_OUTPUT} ref=${INPUT_REF}
